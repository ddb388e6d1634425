"""The page and the JSON API of the product search."""
