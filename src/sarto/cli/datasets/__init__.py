"""`sarto data …`, and the data of a job as the user has it: checked, shown, converted, uploaded."""
