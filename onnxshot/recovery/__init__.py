"""What more effort does for accuracy."""
