# What the launchers share; each sources it. Settings are variables, NAME for the flag --name.
# shellcheck shell=bash

exec 3>&1 # where a dry run prints, also inside $(...)

die() {
  echo "error: $*" >&2
  exit 1
}

need() { # NAME...
  local name flag
  for name; do
    flag=$(tr '[:upper:]_' '[:lower:]-' <<<"$name")
    [ -n "${!name}" ] || die "$name is not set; give --$flag=... or set it in the environment"
  done
}

known_config() { # before anything is rented: a config of the package by its file, variants behind a colon
  local file=${CONFIG%%:*}
  [[ $file == /* ]] || [ -f "$ROOT/$file" ] || die "CONFIG is $CONFIG, and $ROOT has no file $file"
}

like() { # NAME REGEX WORDS: dies unless the whole of it is like that
  [[ ${!1} =~ ^($2)$ ]] || die "$1 is ${!1}; expected $3"
}

whole() { # NAME...
  local name
  for name; do
    [[ ${!name} =~ ^[1-9][0-9]*$ ]] || die "$name is ${!name}; expected a whole number from 1 up"
  done
}

quote() { # one word as a shell reads it
  local escaped="'\\''"
  case $1 in
    "" | *[!A-Za-z0-9_./:=@%+,-]*) printf "'%s'" "${1//\'/$escaped}" ;;
    *) printf %s "$1" ;;
  esac
}

call() { # runs a command; in a dry run prints it
  local word line=""
  if [ -z "$DRY_RUN" ]; then "$@"; else
    for word; do line+="$(quote "$word") "; done
    echo "${line% }" >&3
  fi
}

setting() { tr '[:lower:]-' '[:upper:]_' <<<"$1"; } # its name, of the flag's

# Sets what the flags of a command say, where a switch is 1, or else empty. REST is what stands behind --.
read_flags() { # COMMAND "FLAG..." "SWITCH..." ARGUMENT...
  local command=$1 flags=" $2 " switches=" $3 " flag name
  shift 3
  for flag in $switches; do
    name=$(setting "$flag")
    [ "${!name}" != 0 ] || printf -v "$name" ""
  done
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    [ "$1" != --help ] || { usage && exit; }
    flag=""
    [[ ! $1 =~ ^--([a-z-]+)(=|$) ]] || flag=${BASH_REMATCH[1]}
    if [[ $1 == *=* && $flags == *" $flag "* ]]; then
      printf -v "$(setting "$flag")" %s "${1#*=}"
    elif [[ $1 == "--$flag" && $switches == *" $flag "* ]]; then
      printf -v "$(setting "$flag")" 1
    else
      die "$1 is not a flag of $command; flags of fbjax.main stand behind --, see --help"
    fi
    shift
  done
  # shellcheck disable=SC2034 # Who has sourced this reads it.
  REST=("${@:2}")
}
