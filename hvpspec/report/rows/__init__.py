"""Parts of the figures as rows and notes, for the terminal and the HTML page."""
