"""An S3 bucket: two clients behind one seam, and what is wrapped around them."""
