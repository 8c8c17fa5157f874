"""What a run reports: values, the verdict on them, and how they are shown or sent."""
