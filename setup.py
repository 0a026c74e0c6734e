"""Which packages to install. Only here because pyproject.toml cannot rename a discovered package.

The top-level folders `checkpoints/` (the registry and the small models) and `apps/` (the browser app) are installed
as `editlab_checkpoints` and `editlab_apps`, so that they are found the same way in a checkout and from a wheel.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["editlab", "editlab.*"]),
        "editlab_checkpoints",
        "editlab_apps",
        *(f"editlab_apps.{name}" for name in find_packages("apps")),
    ],
    package_dir={"editlab_checkpoints": "checkpoints", "editlab_apps": "apps"},
)
