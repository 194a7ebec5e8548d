"""Generator of the offline `quick` suite's items: one file a task, `squares` holds the design they share."""
