// shoal_planning_table FILE: puts the table of the plans into FILE (docs/planning.md), between its marks.
// shoal_planning_table --check FILE: exit code 1 when what is there is another.
#include "tests/server/planning_table.h"

#include <fstream>
#include <iostream>
#include <iterator>

int main(int argc, char** argv) {
  const bool check = argc == 3 && std::string_view(argv[1]) == "--check";
  if (argc != 2 && !check) {
    std::cerr << "usage: shoal_planning_table [--check] FILE\n";
    return 2;
  }
  const char* path = argv[argc - 1];
  std::ifstream in(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(in), {}};
  const size_t begin = text.find(shoal::kPlanningBegin), end = text.find(shoal::kPlanningEnd);
  if (begin == std::string::npos || end == std::string::npos || end < begin) {
    std::cerr << path << ": no marks for the table\n";
    return 2;
  }
  const size_t from = begin + shoal::kPlanningBegin.size();
  const std::string table = shoal::planning_table();
  if (text.substr(from, end - from) == table) return 0;
  if (check) {
    std::cerr << path << " is out of date: run shoal_planning_table " << path << "\n" << table;
    return 1;
  }
  text.replace(from, end - from, table);
  std::ofstream(path, std::ios::binary) << text;
  return 0;
}
