#!/bin/sh
# Installs packages into the node's virtual environment, while the image is built.
#
#     pip-install.sh REQUIREMENT...
#
# The machine's own pip settings and CA bundle arrive as BuildKit secrets, its wheel folder as a
# mount: all three are used where they are there, and none of them stays in the image.
set -eu

if [ -s /run/secrets/pip_conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip_conf; fi
if [ -s /run/secrets/ca_bundle ]; then export PIP_CERT=/run/secrets/ca_bundle; fi
export PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PROGRESS_BAR=off

# The index of torch's CPU wheels is asked only where the wheel folder has no such wheel: an index
# that cannot be reached costs minutes of retries.
if [ -n "${TORCH_INDEX:-}" ] && ! ls /wheels/torch-"${TORCH_VERSION:-}"* >/dev/null 2>&1; then
  set -- --extra-index-url "$TORCH_INDEX" "$@"
fi

if [ -d /wheels ]; then set -- --find-links /wheels "$@"; fi
pip install --no-compile "$@"

site=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

# What no node reads: the packages' own tests, C++ headers and test programs, Java jars.
rm -rf "$site"/torch/test "$site"/torch/include "$site"/torch/bin/*_test* "$site"/torch/bin/test_* \
  "$site"/ray/jars "$site"/numpy/*/tests "$site"/numpy/tests "$site"/sympy/*/tests \
  "$site"/sympy/*/*/tests "$site"/networkx/tests "$site"/networkx/*/tests \
  "$site"/networkx/*/*/tests

# Nodes cannot write here, so what is not compiled now would be compiled at every start.
# A few files are templates or for another Python, and do not compile; pip ignores that too.
python -m compileall -q -j 0 "$site" >/dev/null 2>&1 || true
