"""The page."""
def page(rows, about): return str(len(rows))
