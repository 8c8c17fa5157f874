"""What two models are held against each other by: noise held still, orders shared, copies left out, samples weighed."""
