"""What the estimators return: frozen dataclasses that know their error."""
