"""Tests of packager.hub and packager.publish against the loopback Hub."""
