"""What the clinic example needs besides its DAG."""
