"""All pictures, drawn with Matplotlib."""
