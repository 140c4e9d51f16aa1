// shoal_planning_table FILE...: puts the table of the plans into each file (README.md, docs/planning.md),
// between its marks.
// shoal_planning_table --check FILE...: exit code 1 when what is in one of them is another.
#include "tests/server/planning_table.h"

#include <algorithm>
#include <fstream>
#include <iostream>
#include <iterator>

namespace {

int update(const std::string& path, const std::string& table, bool check) {
  std::ifstream in(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(in), {}};
  const size_t begin = text.find(shoal::kPlanningBegin), end = text.find(shoal::kPlanningEnd);
  if (begin == std::string::npos || end == std::string::npos || end < begin) {
    std::cerr << path << ": no marks for the table\n";
    return 2;
  }
  const size_t from = begin + shoal::kPlanningBegin.size();
  if (text.substr(from, end - from) == table) return 0;
  if (check) {
    std::cerr << path << " is out of date: run shoal_planning_table " << path << "\n" << table;
    return 1;
  }
  text.replace(from, end - from, table);
  std::ofstream(path, std::ios::binary) << text;
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const bool check = argc > 1 && std::string_view(argv[1]) == "--check";
  const int first = check ? 2 : 1;
  if (argc <= first) {
    std::cerr << "usage: shoal_planning_table [--check] FILE...\n";
    return 2;
  }
  const std::string table = shoal::planning_table();
  int worst = 0;
  for (int i = first; i < argc; ++i) worst = std::max(worst, update(argv[i], table, check));
  return worst;
}
