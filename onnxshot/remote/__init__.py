"""Remote files (s3://, gs://, https://): `filesystems` opens them, `copies` keeps local copies in the cache.

No other folder imports fsspec. Everything else sees local paths.
"""
