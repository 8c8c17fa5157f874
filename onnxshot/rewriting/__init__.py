"""Passes in an order: before a plan is made, as a plan says, and for another target."""
