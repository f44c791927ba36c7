"""What budgets have spent: counted from the log, and told to the workers."""
