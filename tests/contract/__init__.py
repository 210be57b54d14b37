"""Our own contract with Celery: plain and reliable tasks side by side in one worker, and what differs between them."""
