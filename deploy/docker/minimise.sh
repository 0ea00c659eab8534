#!/bin/sh
# Removes from python:3.11-slim what installs software, what gives a user more rights, and what no service uses.
set -eu

# Purged rather than deleted: Debian's list of what is installed stays true, for scanners.
unused=$(dpkg-query --show --showformat '${Package}\n' | grep -Ex -e 'apt|libapt-pkg.*|gpgv|sqv|perl-base' \
  -e 'libgnutls.*|libidn2-0|libp11-kit0|libunistring.*' -e 'login|login.defs|passwd|mount|e2fsprogs|libext2fs.*|libss2|logsave')
# One argument a package, hence unquoted.
# shellcheck disable=SC2086
dpkg --purge --force-all $unused

library=$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
for name in ensurepip idlelib lib2to3 pydoc_data tkinter turtledemo; do
  rm -rf "${library:?}/$name"
done
find / -xdev -type d \( -path '*-packages/pip*' -o -path '*-packages/setuptools*' -o -path '*-packages/wheel*' \
  -o -path '*-packages/pkg_resources' -o -path '*-packages/_distutils_hack' \) -prune -exec rm -rf {} +
find / -xdev -name distutils-precedence.pth -delete
rm -rf /usr/bin/pip* /usr/local/bin/pip* /usr/local/bin/wheel /usr/local/include /usr/bin/tini-static
# Character sets of the C library, of which Python has its own; translations and manuals. Licences stay.
rm -rf /usr/lib/*/gconv /usr/share/locale /usr/share/man /usr/share/info /usr/share/python-wheels
find /usr/share/doc -type f ! -name copyright -delete
find / -xdev -type f -perm /6000 -exec chmod a-s {} +
rm -rf /var/lib/apt /var/cache/* /var/log/* /tmp/*
# Nothing can be written where this runs, so it is compiled here.
python3 -m compileall -q --invalidation-mode unchecked-hash -x '[-]packages/' "$library"
