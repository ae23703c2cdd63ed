from sharp_cog.cli import main

raise SystemExit(main())
