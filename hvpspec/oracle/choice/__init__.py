"""What a choice of engine rests on: prices, what ranks tell one another, and what an earlier run has chosen."""
