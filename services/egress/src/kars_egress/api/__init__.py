"""The doors of the service: Envoy's protocols, and control for people and the controller. No decisions."""
