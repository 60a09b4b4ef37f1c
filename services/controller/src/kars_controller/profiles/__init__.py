"""AGT policy profiles: the YAML in which tool policies are written, read into rules."""

from kars_controller.profiles.parsing import Problem, Profile, parse, problems

__all__ = ["Problem", "Profile", "parse", "problems"]
