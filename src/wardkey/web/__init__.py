"""What all HTTP doors share: who calls, how failures leave, limits and pagination."""
