#!/bin/sh
# The source of Lua, as Debian has it, in /usr/src/lua.
set -eu
sed 's/^deb /deb-src /' /etc/apt/sources.list >/etc/apt/sources.list.d/source.list
apt-get update
cd /usr/src
apt-get source --download-only lua5.4
mkdir lua
tar -xf lua5.4_*.orig.tar.* -C lua --strip-components 1
rm lua5.4_* /etc/apt/sources.list.d/source.list
