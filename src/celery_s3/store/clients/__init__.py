"""The only room that imports boto3 and obstore: two data planes, the control plane, their errors."""
