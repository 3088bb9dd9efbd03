"""What all HTTP routes share: connections, callers, problems, limits and pagination."""
