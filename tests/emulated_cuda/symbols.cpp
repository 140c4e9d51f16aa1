// Names of kernels, which are mostly local symbols: dladdr() does not know them, the symbol table does.
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>

#include "emulated_cuda/block.h"

namespace shoal::emulated {
namespace {

// The symbol at `address` (as the file counts) in a mapped ELF file; "" without one.
std::string symbol_at(const char* file, uint64_t address) {
  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(file);
  const auto* sections = reinterpret_cast<const Elf64_Shdr*>(file + header->e_shoff);
  for (int s = 0; s < header->e_shnum; ++s) {
    if (sections[s].sh_type != SHT_SYMTAB) continue;
    const auto* symbols = reinterpret_cast<const Elf64_Sym*>(file + sections[s].sh_offset);
    const char* names = file + sections[sections[s].sh_link].sh_offset;
    for (uint64_t i = 0; i < sections[s].sh_size / sizeof(Elf64_Sym); ++i) {
      if (symbols[i].st_value == address && ELF64_ST_TYPE(symbols[i].st_info) == STT_FUNC) {
        return names + symbols[i].st_name;
      }
    }
  }
  return "";
}

}  // namespace

std::string function_name(const void* function) {
  Dl_info info{};
  if (dladdr(function, &info) == 0) return "?";
  const auto offset = static_cast<uint64_t>(static_cast<const char*>(function) -
                                            static_cast<const char*>(info.dli_fbase));
  std::string name;
  // The kernel's file is this program itself: trusted, and there.
  const int descriptor = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  struct stat status{};
  if (descriptor >= 0 && fstat(descriptor, &status) == 0) {
    const auto size = static_cast<size_t>(status.st_size);
    void* file = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (file != MAP_FAILED) {
      const bool moved = static_cast<const Elf64_Ehdr*>(file)->e_type == ET_DYN;
      name = symbol_at(static_cast<const char*>(file),
                       moved ? offset : reinterpret_cast<uint64_t>(function));
      munmap(file, size);
    }
  }
  if (descriptor >= 0) close(descriptor);
  if (name.empty()) return fmt::format("at {}+{:#x}", info.dli_fname, offset);
  int failed = 0;
  const std::unique_ptr<char, void (*)(void*)> readable(
      abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &failed), free);
  return failed == 0 ? readable.get() : name;
}

}  // namespace shoal::emulated
