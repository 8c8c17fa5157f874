"""What nodes cost, and which of them go back to float for a goal."""
