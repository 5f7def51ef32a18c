# Writes OUT: a source with the parts of the page that stand in FOLDER (server/page_parts.h).
function(read out)
  set(text "")
  foreach(name ${ARGN})
    file(READ ${FOLDER}/${name} one)
    string(APPEND text "${one}")
  endforeach()
  if(text MATCHES "\\)page\"")
    message(FATAL_ERROR "${ARGN}: has )page\", which ends the string that holds it")
  endif()
  set(${out} "${text}" PARENT_SCOPE)
endfunction()
read(html page.html)
read(style page.css)
read(script ${SCRIPTS})
file(WRITE ${OUT} "#include \"server/page_parts.h\"\n\nnamespace tessera::page {\n
const std::string_view kHtml = R\"page(${html})page\";
const std::string_view kStyle = R\"page(${style})page\";
const std::string_view kScript = R\"page(${script})page\";
\n}  // namespace tessera::page\n")
