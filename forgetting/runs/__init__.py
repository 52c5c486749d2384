"""A run's folder: its name, what it was made from, what it cost, where it resumes; LightningCLI."""
