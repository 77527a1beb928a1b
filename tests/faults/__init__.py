"""Bad days: killed, interrupted, out of space, out of files, damaged and hostile inputs."""
