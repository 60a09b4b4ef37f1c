"""What every kars service needs and that belongs to none."""
