"""Pages and plots for people, drawn from reports."""
