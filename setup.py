"""Which packages to install. Only here because pyproject.toml cannot rename a discovered package.

The top-level folder `checkpoints/` (the registry and the small models) is installed as
`editlab_checkpoints`, so that it is found the same way in a checkout and from a wheel.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["editlab", "editlab.*"]), "editlab_checkpoints"],
    package_dir={"editlab_checkpoints": "checkpoints"},
)
