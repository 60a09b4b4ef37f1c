"""Held calls: parked here, decided by people through the controller."""
