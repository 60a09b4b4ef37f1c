"""CustomResourceDefinitions and the reference of their fields, generated from the models in `api_types`."""
