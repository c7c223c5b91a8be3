"""A real S3 server and an SQS stand-in, for users' tests and ``celery s3 dev``; see ``docs/testing.md``."""
