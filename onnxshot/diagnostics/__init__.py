"""What is here to run models on, and what it does for int8."""
