# cmake -DOUT=FILE.cpp -DFILES="a|b" -P embed_text.cmake: the files' text as shoal::calibration_text().
string(REPLACE "|" ";" FILES "${FILES}")
set(text "")
foreach(file IN LISTS FILES)
  file(READ "${file}" part)
  # A string literal of its own for each paragraph: their length is limited, what they add up to is not.
  string(REPLACE "\n\n" "\n\n)TEXT\"\nR\"TEXT(" part "${part}")
  string(APPEND text "R\"TEXT(${part})TEXT\"\n")
endforeach()
file(WRITE "${OUT}" "#include \"runtime/quantization/calibration_text.h\"\n\nnamespace shoal {\n\nstd::string_view calibration_text() {\n  static constexpr char kText[] =\n${text};\n  return {kText, sizeof kText - 1};\n}\n\n}  // namespace shoal\n")
