// Settings of the kernel: instruction sets, memory levels, tilings, workers.
#pragma once

#include <cstdio>
#include <sstream>
#include <string>
#include <vector>

#include "../../../csrc/cpu/options.h"
#include "checks.h"
#include "workers.h"

extern "C" {  // csrc/cpu/options.cpp
const char* ctc_align_cpus();
int ctc_align_set_cpu(const char* name);
void ctc_align_set_cuts(const int64_t* cuts, int64_t count, int64_t strip_frames, int64_t group_columns);
}

namespace support {

struct Setting {
  Options options;
  int workers = 1;
  bool in_turn = false;
  bool may_stop = false;
};

struct NamedIsa {
  std::string name;
  const Isa* isa;
};

// The instruction sets of this processor; the portable one is the last.
inline std::vector<NamedIsa> find_isas() {
  std::vector<NamedIsa> found;
  std::istringstream names(ctc_align_cpus());
  for (std::string name; std::getline(names, name, ',');) {
    CHECK(ctc_align_set_cpu(name.c_str()) == 0);
    found.push_back({name, current_options().isa});
  }
  CHECK(found.back().isa == &kPortable);
  return found;
}
inline const std::vector<NamedIsa>& isas() {
  static const std::vector<NamedIsa> found = find_isas();
  return found;
}

// Records for all of the lattice and no checkpoint: the yardstick of every other memory level.
inline Options rows_only(const Isa* isa) { return {.isa = isa, .force_cuts = true}; }

inline std::vector<Options> memory_levels(const Isa* isa, index_t frames) {
  std::vector<Options> levels = {{.isa = isa, .memory_budget = 1}};  // as little memory as possible
  for (const std::vector<index_t>& cuts :
       std::vector<std::vector<index_t>>{{}, {1}, {7}, {97, 13}, {frames + 5}, {512, 100, 3}}) {
    levels.push_back({.isa = isa, .force_cuts = true, .cuts = cuts});
  }
  return levels;
}

constexpr index_t kStripFrames[] = {0, 1, 17, 512};

inline void note(const Setting& setting) {
  const Options& options = setting.options;
  char* text = setting_at_work;
  const auto add = [&](const char* format, auto... values) {
    text += std::snprintf(text, setting_at_work + sizeof setting_at_work - text, format, values...);
  };
  for (const NamedIsa& named : isas()) {
    if (named.isa == options.isa) {
      add("\n  %s", named.name.c_str());
    }
  }
  add(options.force_cuts ? ", cuts" : ", budget %ld", static_cast<long>(options.memory_budget));
  for (const index_t frames : options.cuts) {
    add(" %ld", static_cast<long>(frames));
  }
  add(", %d workers%s", setting.workers, setting.in_turn ? " in turn" : "");
  add(", strip_frames %ld", static_cast<long>(options.tiling.strip_frames));
  add(", group_columns %ld", static_cast<long>(options.tiling.group_columns));
}

}  // namespace support
