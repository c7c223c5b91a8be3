"""What a result costs: this backend, Celery's own `s3` backend and Celery's Redis backend, in one run."""
