"""Two films become a surface."""
