"""What must hold before a job exists: its references lead to the right things, and its method has what it needs."""
