# Writes OUT: #define TESSERA_COMMIT "abc1234" (with + if the tree has changes).
execute_process(COMMAND git rev-parse --short HEAD OUTPUT_VARIABLE commit
  OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
execute_process(COMMAND git status --porcelain --untracked-files=no OUTPUT_VARIABLE changes
  ERROR_QUIET)
if(NOT commit)
  set(commit "unknown")
elseif(changes)
  set(commit "${commit}+")
endif()
file(CONFIGURE OUTPUT ${OUT} CONTENT "#define TESSERA_COMMIT \"${commit}\"\n" @ONLY)
