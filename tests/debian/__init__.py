"""The Debian packages on booted Debian machines: `./dev deb-test`. Needs root, debootstrap and systemd-nspawn."""
