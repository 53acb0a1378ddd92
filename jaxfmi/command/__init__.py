"""What ``jaxfmi.cli`` is made of: words become methods, networks and pictures here.

The library proper knows none of this.
"""
