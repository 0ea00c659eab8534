"""Job specs: what a job is asked to do, with every default and range in one place; one module for each kind of job.

The same names stand in `job_service.proto`; a test keeps the two equal. Unknown fields are refused.
"""
