"""The whole way on a real small model, offline, on a CPU: from a base to a proven release."""
