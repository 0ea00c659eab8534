"""Workers: processes that claim jobs of a queue and run each as a child process."""
